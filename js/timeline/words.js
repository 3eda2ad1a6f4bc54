/**
 * What stands on the view itself, in the languages of the pack; field names are those of the plan and stay as they are.
 *
 * @typedef {object} Words
 * @property {string} timeline
 * @property {string} segment
 * @property {string} last
 * @property {string} add
 * @property {string} remove
 * @property {string} prompt
 * @property {string} goesOn
 * @property {string} chain
 * @property {string} elsewhere
 * @property {string} free
 * @property {string} start
 * @property {string} ruler
 */

/** @type {Record<string, Words>} */
const LANGUAGES = {
  en: {
    timeline: "Timeline", segment: "segment", last: "last segment", add: "Add a reference (N)",
    remove: "Remove the chosen reference (Delete)", prompt: "The prompt.", goesOn: "The words before go on.",
    chain: "From the connected chain of references.", elsewhere: "Belongs to another segment:", free: "made freely",
    start: "Connect pictures and press + to place one.", ruler: "latent frame · frame · second",
  },
  zh: {
    timeline: "时间线", segment: "片段", last: "最后一个片段", add: "添加参考 (N)", remove: "移除所选参考 (Delete)",
    prompt: "提示词。", goesOn: "沿用前面的提示词。", chain: "来自已连接的参考链。", elsewhere: "属于另一个片段：",
    free: "自由生成", start: "连接图像，按 + 放置一个。", ruler: "潜空间帧 · 帧 · 秒",
  },
  "zh-TW": {
    timeline: "時間軸", segment: "片段", last: "最後一個片段", add: "新增參考 (N)", remove: "移除所選參考 (Delete)",
    prompt: "提示詞。", goesOn: "沿用前面的提示詞。", chain: "來自已連接的參考鏈。", elsewhere: "屬於另一個片段：",
    free: "自由生成", start: "連接圖片，按 + 放置一個。", ruler: "潛空間影格 · 影格 · 秒",
  },
  ja: {
    timeline: "タイムライン", segment: "セグメント", last: "最後のセグメント", add: "参照を追加 (N)",
    remove: "選んだ参照を削除 (Delete)", prompt: "プロンプト。", goesOn: "前の言葉が続きます。",
    chain: "接続された参照の列から。", elsewhere: "別のセグメントに属します：", free: "自由に生成",
    start: "画像を接続し、+ で配置します。", ruler: "潜在フレーム · フレーム · 秒",
  },
  ko: {
    timeline: "타임라인", segment: "세그먼트", last: "마지막 세그먼트", add: "참조 추가 (N)",
    remove: "선택한 참조 제거 (Delete)", prompt: "프롬프트.", goesOn: "앞의 말이 이어집니다.",
    chain: "연결된 참조 체인에서 왔습니다.", elsewhere: "다른 세그먼트에 속합니다:", free: "자유롭게 생성",
    start: "이미지를 연결하고 +로 배치하세요.", ruler: "잠재 프레임 · 프레임 · 초",
  },
  fr: {
    timeline: "Ligne de temps", segment: "segment", last: "dernier segment", add: "Ajouter une référence (N)",
    remove: "Retirer la référence choisie (Suppr)", prompt: "Le prompt.", goesOn: "Les mots d'avant continuent.",
    chain: "De la chaîne de références connectée.", elsewhere: "Appartient à un autre segment :", free: "libre",
    start: "Connectez des images et appuyez sur + pour en placer une.", ruler: "image latente · image · seconde",
  },
  de: {
    timeline: "Zeitleiste", segment: "Abschnitt", last: "letzter Abschnitt", add: "Referenz hinzufügen (N)",
    remove: "Gewählte Referenz entfernen (Entf)", prompt: "Der Prompt.", goesOn: "Die Worte davor gelten weiter.",
    chain: "Aus der verbundenen Kette von Referenzen.", elsewhere: "Gehört zu einem anderen Abschnitt:", free: "frei",
    start: "Bilder verbinden und mit + eines setzen.", ruler: "latentes Bild · Bild · Sekunde",
  },
  es: {
    timeline: "Línea de tiempo", segment: "segmento", last: "último segmento", add: "Añadir una referencia (N)",
    remove: "Quitar la referencia elegida (Supr)", prompt: "El prompt.", goesOn: "Siguen las palabras anteriores.",
    chain: "De la cadena de referencias conectada.", elsewhere: "Pertenece a otro segmento:", free: "libre",
    start: "Conecta imágenes y pulsa + para colocar una.", ruler: "fotograma latente · fotograma · segundo",
  },
  ru: {
    timeline: "Шкала времени", segment: "сегмент", last: "последний сегмент", add: "Добавить референс (N)",
    remove: "Удалить выбранный референс (Delete)", prompt: "Промпт.", goesOn: "Действуют прежние слова.",
    chain: "Из подключённой цепочки референсов.", elsewhere: "Относится к другому сегменту:", free: "свободно",
    start: "Подключите изображения и нажмите +, чтобы поставить одно.", ruler: "латентный кадр · кадр · секунда",
  },
};

/**
 * @param {unknown} language as the page names it
 * @returns {Words} English where there are none
 */
export function wordsOf(language) {
  return LANGUAGES[String(language)] ?? LANGUAGES.en;
}

/** Languages there are words in. */
export const KNOWN = Object.keys(LANGUAGES);
